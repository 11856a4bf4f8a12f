"""Makes resources quiet around the creation of a capture, and lets go of them whatever happens.

bracket   one thing that is made quiet and let go again: a frozen file system, an unmounted one, a hook
undo      what lets go of it, as plain data, armed at the watchdog before anything is held
watchdog  another process that holds the undos, and lets go when the one that holds dies, stops or overruns
terms     when the watchdog lets go by itself: after how long a silence, and after how long in all
"""
