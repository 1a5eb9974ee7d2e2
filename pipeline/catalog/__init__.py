"""What is released: tiers, targets, recipes, golden prompts, thresholds and costs. No I/O."""
