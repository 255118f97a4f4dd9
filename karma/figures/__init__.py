"""Figures: `style` for all of them, then one file a stage; nothing that trains or generates needs these."""
