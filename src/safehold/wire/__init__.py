"""Wire protocols as bytes: no policy, no knowledge of vaults."""
