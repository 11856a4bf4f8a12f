"""Makes resources quiet around the creation of a capture, and lets go of them whatever happens.

bracket   one thing that is made quiet and let go again: a frozen file system, an unmounted one, a hook
undo      what lets go of it, as plain data, armed at the watchdog before anything is held
deadline  when the watchdog lets go by itself; also when the process that holds dies or stops
"""
