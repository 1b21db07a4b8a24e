// Package chat is the vocabulary of Mynah: ids, topics, messages, conversations
// and the errors that clients see. It knows neither MQTT nor PostgreSQL nor HTTP
// and imports only the standard library, so that every other package can share it.
package chat
