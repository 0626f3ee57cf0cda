module github.com/seine-net/seine

go 1.26
