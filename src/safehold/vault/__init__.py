"""One encrypted, deduplicated repository at one object-storage location.

object    an immutable, named byte string in the store; every kind is listed in `names`
chunk     a piece of plaintext, named by a keyed BLAKE3 of it (its id); sealed on its own
pack      an object of many sealed chunks, named by the BLAKE3 of its stored bytes
node      a metadata chunk: a kind, the ids it refers to, and a body
run       a signed object that says which chunk lies where in which pack
session   one writer at work: it uploads packs, then runs, then commits
point     the object whose creation is the commit of a session
note      something the owner signed about a point after it was committed
gc chain  owner-signed records, each with the hash of the one before: what is condemned, dead, or absorbed
domain    the writers that deduplicate against each other: one dedup key, one index key

From the bottom up: `names` and `records`; `envelope` and `keys`; `sealing`, `slots`, `kit`, `writers`; `pack`, `run`,
`node`, `index`; `trust`, `access`, `create`, `notes`; `session` on the way in, `fetch`, `locate`, `disk` and
`catalogue` on the way out; `vault` ties them together. The format is specified to the byte in `docs/format.md`.
"""
