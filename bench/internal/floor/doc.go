// Package floor is the least that an attachment can cost: the kernel operations of an attach and of a detach, done by a
// bare program and nothing else. It writes netlink messages byte by byte, one socket per namespace and protocol, as many
// messages in one system call as the kernel takes, one answer to each; it looks nothing up but what it can't do without,
// checks nothing, undoes nothing, and uses no package of the project, so that what it costs is the kernel's.
//
//	host namespace                                          container
//	  RTM_NEWLINK veth, up, master, its peer there
//	  [ptp: gateway's address and route to the container]
//	  [bandwidth: ifb, two tbf, one mirred]
//	  [nft: all elements in one batch]                      RTM_NEWLINK up, RTM_NEWADDR and RTM_NEWROUTE per family,
//	                                                        in one
//	  RTM_DELLINK veth [and ifb], [nft: one batch]
//
// What the real programs do besides is no part of it: addresses are given and not taken from a store, no JSON is read or
// written, no state is compared, no connection is forgotten.
package floor
