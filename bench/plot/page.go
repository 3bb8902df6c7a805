package plot

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"

	"slipway/bench"
)

//go:embed page.html
var pageText string

// page renders a report as one page that needs nothing from elsewhere.
func page(r *bench.Report) ([]byte, error) {
	plots := map[string]template.HTML{}
	for _, f := range r.Figures() {
		svg, err := svgOf(r, f)
		if err != nil {
			return nil, err
		}
		plots[f.Name] = template.HTML(svg) //nolint:gosec // svgOf escapes what it writes
	}
	t, err := template.New("page").Funcs(template.FuncMap{
		"plot": func(name string) template.HTML { return plots[name] },
		"hue": func(driver string) template.CSS {
			h := hue(r, driver)
			return template.CSS(fmt.Sprintf("#%02x%02x%02x", h.R, h.G, h.B)) //nolint:gosec // three numbers
		},
	}).Parse(pageText)
	if err != nil {
		return nil, fmt.Errorf("write page: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, r.Page()); err != nil {
		return nil, fmt.Errorf("write page: %w", err)
	}
	return b.Bytes(), nil
}
