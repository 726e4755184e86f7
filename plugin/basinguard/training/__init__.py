"""Fine-tuning with the guard beside it: Lightning, accelerate or a loop of your own."""
