"""What a fine-tune is measured for, epoch after epoch, and what the measurements mean. No framework."""
