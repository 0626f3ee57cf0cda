// Package linux carries kernel objects out on a real Linux kernel: links, addresses, routes, rules, neighbours and
// queueing disciplines over rtnetlink, nftables over nfnetlink, sysctls under /proc/sys and held ports as bound sockets.
// It is the only code of the project with side effects on the kernel, and it never runs a program such as ip or nft.
//
// It speaks netlink itself. What it needs and libraries don't give is the ground for that: several messages per system
// call with one error each, one nftables transaction for many changes with the culprit named, look-ups of single set
// elements, port ids that tell our own changes in a notification, and no work at start-up, which is a part of the time
// of every CNI call.
//
// One call of List or Apply is a session: it opens each namespace and each socket that it needs once, and closes them
// all when it returns.
//
// It decides nothing: what to change is Diff's to say and the reconciler's to repeat.
package linux
