"""A page in the browser that edits photographs. `page.create_app` makes it; it needs Gradio."""
