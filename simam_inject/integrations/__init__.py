"""What other libraries need: ultralytics, timm, Lightning, the Hugging Face Hub. Each is imported after its library."""
