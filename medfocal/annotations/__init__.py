"""Labels from several and fallible readers: fusing, smoothing, corrupting and suspecting what they drew."""
