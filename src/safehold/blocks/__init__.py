"""Volumes that Safehold serves itself: written in place or redirected, snapshotted in an instant, filled in from a vault.

block     64 KiB of a volume, the unit in which changes and presence are known; independent of the vault's block size
sector    4 KiB, the finest thing that is known of a partial or redirected block
map       what is known of each block: missing, partial, present or zero; changed since the last seal or not
epoch     the time between two seals; writes belong to the one in which they were let through the gate
seal      the end of an epoch: its content stands still from there on. O(1): no drain, no sync, no copy
overlay   where writes to blocks go that a sealed epoch which is still wanted holds still
drained   a sealed epoch whose content has reached the vault; it is folded into the data, oldest first
checkpoint  the durable form of the map; a block is durable as present only after its data
hydration filling in missing blocks from the recovery point that a volume was made of
"""
