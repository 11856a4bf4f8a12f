"""The words of the program as data: no I/O, and imports of nothing else in Safehold.

resource     a thing that is protected; its name is its identity
point        the immutable, committed result of one backup of one or more resources
consistency  how still the resource was held: application > filesystem > crash > none
extent       a run of bytes of a disk: data, zero, or the same as in an earlier point
"""
