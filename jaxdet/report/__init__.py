"""What a person looks at: a page about an evaluation, and one about the data.

    plots     charts as SVG
    films     films with boxes to switch on and off
    page      templates to HTML
    evaluation, data    the two pages

Matplotlib and Jinja are imported late: not every command makes a page.
"""
