"""From one checkpoint to another: a recipe chooses formats, a plan names every step, the pipeline streams and proves."""
