"""The only room that imports nvflare."""
