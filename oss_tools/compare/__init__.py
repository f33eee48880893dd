"""Several quantizations of one model side by side: weights, predictions, answers, speed and memory, with statistics."""
