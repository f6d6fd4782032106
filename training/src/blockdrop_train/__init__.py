"""Trains, finetunes, evaluates and exports BlockDrop model bundles."""
