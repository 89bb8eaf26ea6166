"""Views of a run in a notebook: each is a live widget, a page that needs no kernel, and a picture.

    run ──► state (a few synchronized traits) ──► static/NAME.js draws it
             │                                     the same script in a widget and in a saved page
             └──► png: the same, drawn by matplotlib

`accerl.notebook.view` is what the views have in common. Nothing here is imported by the core.
"""
