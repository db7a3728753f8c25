"""HTML pages for people: one about an evaluation, one about the data.

    plots     charts as SVG
    films     the gallery: films, and boxes in layers to switch on and off
    page      from templates to HTML
    evaluation, data    the two pages
    survey, feed        statistics of a dataset; what the model is fed
    overlays  films with detections drawn on them
    write     the files of an evaluation

Matplotlib and Jinja are imported late: not every command makes a page.
"""
