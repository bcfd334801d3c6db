// Package stack reads stack files, compares them with what a daemon has, and
// says what is to be done. It changes nothing itself.
//
// A stack file describes networks, volumes and instances that belong
// together:
//
//	version: 1
//	name: shop
//	networks:
//	  back: {ipv4: 10.9.0.0/24}
//	volumes:
//	  data: {size: 10GiB}
//	instances:
//	  db:
//	    image: postgres:16
//	    volumes: ["data:/var/lib/postgresql/data"]
//	    networks: [back]
//	    health: {command: pg_isready, interval: 5s}
//	  web:
//	    image: shop/web:7
//	    depends-on: [db]
//	    publish: ["8080:80"]
//	    env: {DATABASE: db}
//
// The keys are those of launch and set (package settings); a key with a dot
// may also be written as nested mappings. YAML's anchors, aliases and merge
// keys work. Unknown and repeated keys are errors that name their line.
//
// The file is the whole truth about its instances: a setting that it doesn't
// mention has its default, whoever changed it meanwhile. Labels, networks and
// volumes are only ever added to. An instance runs unless the file says
// "power: stopped", but one that ended with status 0 and is not to be
// restarted has done its work. Everything in a stack carries the label
// Label, by which it is found again.
package stack
