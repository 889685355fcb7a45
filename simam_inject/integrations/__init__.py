"""What other libraries need: ultralytics, timm, Lightning, the Hugging Face Hub. Each is loaded when it is used."""
