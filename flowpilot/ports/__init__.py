"""What the rooms above need of the world, as protocols. Adapters implement them; tests run one suite on each."""
