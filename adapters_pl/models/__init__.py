"""The frozen base: its architecture, where adapters can go, loading and quantisation."""
