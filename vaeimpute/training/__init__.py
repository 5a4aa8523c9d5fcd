"""How a model is trained: loop, schedule, runtime."""
