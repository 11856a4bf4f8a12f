"""Which chunk lies where, in memory that does not grow with the vault.

row    48 bytes: chunk id, pack number, offset, record length, plain length and codec; little-endian after the id
table  a file of rows sorted by id, with a fan-out over the first bits of the id and the packs that its rows number
recent rows of the session at work, in a dict until they are many enough for a table of their own
cache  the tables of one dedup domain on this machine; it can be thrown away at any time

A table says which chunks exist. That is as sensitive as the domain's index key, so its file is for its owner alone.
"""
