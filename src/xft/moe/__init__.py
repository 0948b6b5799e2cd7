"""Mixture-of-experts layers in stock transformers models: routers, layers, balance, checkpoint classes."""
