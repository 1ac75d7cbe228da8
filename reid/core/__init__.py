"""What every room of the house, and `datasets`, may import. No torch."""
