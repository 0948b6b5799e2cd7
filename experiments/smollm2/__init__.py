"""SFT, soup and merges on SmolLM2-135M."""
