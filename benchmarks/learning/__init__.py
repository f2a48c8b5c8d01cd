"""Does choosing teachers pay when their rationalities have to be learnt? Designs on simulated crowds."""
