"""The pinned llama.cpp: fetched once, checked, built for this machine and for the targets."""
