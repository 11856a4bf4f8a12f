"""Lets go of what another process holds, when that process does not.

A program of its own, `python -I -m safehold.watchdog`, of the standard library only: it goes on when the packages of the process that it
watches are being replaced, and nothing else imports it. What the two say to each other is in `messages`.

owner    the process that makes things quiet; known by its number and the time of its start
undo     what lets go of one thing that is held: a thaw, a mount, a hook; plain data on its way here
step     one undo in the order in which its thing is held; the owner asks before each, and says when it let go itself
vigil    from the arming until nothing is held and nothing can be held any more
"""
