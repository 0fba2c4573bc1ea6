"""Reading any Hugging Face DETR into one picture."""
