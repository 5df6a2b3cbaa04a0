"""What a compiled program will cost on hardware: read from its HLO, held against what a chip can do."""
