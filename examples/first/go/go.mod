module examples.nagaya.dev/first

go 1.26

require nagaya.dev/sdk v0.2.0

replace nagaya.dev/sdk => ../../../guest-sdk/go
