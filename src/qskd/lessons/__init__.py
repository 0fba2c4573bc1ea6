"""What a teacher said, on disk: a student learns from it without the teacher."""
