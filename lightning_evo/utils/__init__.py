"""What any room may use: words of messages, checks of options, files that appear whole, random states."""
