"""Volumes that Safehold serves itself: written in place or redirected, snapshotted in an instant, filled in from a vault.

block     the unit in which changes and presence are known, 512 KiB unless the vault's blocks are larger: one block of a
          volume is one or more whole blocks of the vault, so what is unchanged there needs no reading here
sector    4 KiB, the finest thing that is known of a partial or redirected block
map       what is known of each block (missing, partial, present), and of each sector of a partial one
epoch     the time between two seals; a write belongs to the one in which it was let through the gate
seal      the end of an epoch: its content stands still from there on. No drain, no sync, no copy
held      a block that a sealed epoch changed and that has not reached the vault yet
overlay   where writes to held blocks go, at the same offsets
drained   a sealed epoch whose content has reached the vault, or that was given up
fold      moving an overlay into the data once every epoch before it is drained; oldest first
phase     one arrangement of epochs and overlays; writers pass the gate into the one in force
checkpoint  the durable form of the map; a block is durable as present only after its data
hydration filling in missing blocks from the recovery point that a volume was made of

trouble   what a volume's own files fail at, until it is over

From the bottom up: `layout` and `maps`; `checkpoint` and `summary`; `layers`, and `whereabouts`, which of them has a sector; `troubles`; `durability`
flushes; `volume` serves one disk; `epochs` seals and folds; `sealed` is a snapshot's content, `ids` what its blocks are in the vault; `opening`
recovers; `held` is a volume with its record; `sealing` takes snapshots of several at one instant; `inventory` reads what lies below and
`recycle_bin` what was deleted; `directory` has all volumes of a machine. `execution`, `slow_lane` and `connection` serve one client, `server` all.
"""
