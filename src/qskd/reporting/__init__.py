"""What a run hands to people: tables and pictures."""
