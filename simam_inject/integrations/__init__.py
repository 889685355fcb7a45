"""What other libraries need: ultralytics, timm, the Hugging Face Hub, Lightning. Each is loaded only when it is used."""
