"""Everything that knows Hydra: composing configs, near matches, the allow-list, building parts."""
