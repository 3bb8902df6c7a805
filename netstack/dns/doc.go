// Package dns relays DNS messages between the guest and the host's current resolvers,
// byte for byte: it reads only the message's id and whether it is a query, so
// every record type, EDNS and DNSSEC survive, and SERVFAIL is an answer like any other.
//
// # Invariants
//
//   - Each query has its own connected sockets, and with them a source port that the kernel
//     draws at random; an answer counts only from the resolver asked, with the query's id.
//   - A resolver that fails or stays silent for Config.Patience is not waited for: the next one is
//     asked, too, and the first answer is taken. For Config.Shun such a resolver is asked last.
//   - Queries in flight are bounded; further ones are dropped and counted, and the guest asks again.
package dns
