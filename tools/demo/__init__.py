"""What the embedded demo model is pretrained on and how: scenes, captions, vocabulary, contrastive steps."""
