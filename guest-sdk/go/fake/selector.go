package fake

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

var requirement = regexp.MustCompile(
	`^\s*(!?)\s*([A-Za-z0-9](?:[-\w./]*[A-Za-z0-9])?)\s*(?:(==|=|!=)\s*([-\w.]*)|(in|notin)\s*\(([^()]*)\))?\s*$`)

// selects says whether the labels of an object match a selector; an empty one matches all.
func selects(selector string, of object) (bool, error) {
	if strings.TrimSpace(selector) == "" {
		return true, nil
	}
	labels, _ := at(of, "labels").(object)
	all, depth, from := true, 0, 0
	// Every requirement is read, so that a wrong one is found whatever the others say.
	for i := 0; i <= len(selector); i++ {
		if i < len(selector) {
			switch selector[i] {
			case '(':
				depth++
			case ')':
				depth--
			}
			if selector[i] != ',' || depth > 0 {
				continue
			}
		}
		is, err := isMet(selector[from:i], labels)
		if err != nil {
			return false, err
		}
		all, from = all && is, i+1
	}
	return all, nil
}

func isMet(text string, labels object) (bool, error) {
	match := requirement.FindStringSubmatch(text)
	if match == nil || (match[1] != "" && match[3]+match[5] != "") {
		return false, fail("invalid", fmt.Sprintf("%q is no requirement of a label selector", text))
	}
	value, has := labels[match[2]]
	switch {
	case match[3] == "!=":
		return value != any(match[4]), nil
	case match[3] != "":
		return value == any(match[4]), nil
	case match[5] != "":
		isIn := slices.ContainsFunc(strings.Split(match[6], ","), func(one string) bool {
			return has && any(strings.TrimSpace(one)) == value
		})
		return isIn == (match[5] == "in"), nil
	default:
		return has != (match[1] != ""), nil
	}
}
