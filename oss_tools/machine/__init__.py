"""What this machine is: processor, memory and its speed, versions. Facts that every room above may ask for."""
