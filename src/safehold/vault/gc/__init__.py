"""Giving space back while backups run.

    mark    which chunks the points need, and one surviving place for each
    runs    index runs of ended sessions made into base runs that name no dead pack
    prune   the steps that make it safe: condemn, wait for sessions, look again, say what is dead, delete

Order makes it safe; clocks only decide when to stop waiting for a session. The chain of gc records serialises prunes, and anybody may
finish what another began.
"""
