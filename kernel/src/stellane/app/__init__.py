"""What users import: Server, Context, Request, Response, and any ASGI app."""
