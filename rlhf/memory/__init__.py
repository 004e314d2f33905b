"""What a run takes: bytes of every phase on each rank and in main memory, operations, hours. Imports no torch."""
