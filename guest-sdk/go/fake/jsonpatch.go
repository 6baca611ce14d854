package fake

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// patched is RFC 6902.
func patched(of object, patch any) (any, error) {
	operations, is := patch.([]any)
	if !is {
		return nil, fail("invalid", "a JSON patch is a list of operations")
	}
	root := any(of)
	for _, one := range operations {
		operation, _ := one.(object)
		path, _ := operation["path"].(string)
		from, _ := operation["from"].(string)
		var err error
		switch operation["op"] {
		case "test":
			var found any
			if found, err = take(root, path); err == nil && !reflect.DeepEqual(found, operation["value"]) {
				err = fail("conflict", "the test of "+path+" failed")
			}
		case "remove":
			root, err = change(root, segments(path), remove, nil)
		case "add":
			root, err = change(root, segments(path), add, operation["value"])
		case "replace":
			root, err = change(root, segments(path), replace, operation["value"])
		case "copy", "move":
			var found any
			if found, err = take(root, from); err == nil && operation["op"] == "move" {
				root, err = change(root, segments(from), remove, nil)
			}
			if err == nil {
				root, err = change(root, segments(path), add, deep(found))
			}
		default:
			err = fail("invalid", fmt.Sprintf("no operation %v", operation["op"]))
		}
		if err != nil {
			return nil, err
		}
	}
	return root, nil
}

type way int

const (
	add way = iota
	remove
	replace
)

var unescape = strings.NewReplacer("~1", "/", "~0", "~")

func segments(pointer string) []string {
	if pointer == "" {
		return nil
	}
	parts := strings.Split(pointer, "/")[1:]
	for i, part := range parts {
		parts[i] = unescape.Replace(part)
	}
	return parts
}

func missing(what string) error {
	return fail("conflict", "there is no "+what+" in the object as it is")
}

func take(root any, pointer string) (any, error) {
	for _, part := range segments(pointer) {
		switch of := root.(type) {
		case object:
			inner, has := of[part]
			if !has {
				return nil, missing(pointer)
			}
			root = inner
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(of) {
				return nil, missing(pointer)
			}
			root = of[i]
		default:
			return nil, missing(pointer)
		}
	}
	return root, nil
}

// change makes one change at a path, and returns what stands in the place of root then.
func change(root any, path []string, how way, value any) (any, error) {
	if len(path) == 0 {
		return value, nil
	}
	part := path[0]
	switch of := root.(type) {
	case object:
		inner, has := of[part]
		if len(path) > 1 {
			if !has {
				return nil, missing(part)
			}
			left, err := change(inner, path[1:], how, value)
			of[part] = left
			return of, err
		}
		if !has && how != add {
			return nil, missing(part)
		}
		if how == remove {
			delete(of, part)
		} else {
			of[part] = value
		}
		return of, nil
	case []any:
		if part == "-" && how == add && len(path) == 1 {
			return append(of, value), nil
		}
		i, err := strconv.Atoi(part)
		if err != nil || i < 0 || i > len(of) || (i == len(of) && how != add) {
			return nil, missing(part)
		}
		if len(path) > 1 {
			of[i], err = change(of[i], path[1:], how, value)
			return of, err
		}
		switch how {
		case add:
			return slices.Insert(of, i, value), nil
		case remove:
			return slices.Delete(of, i, i+1), nil
		default:
			of[i] = value
			return of, nil
		}
	default:
		return nil, missing(part)
	}
}
